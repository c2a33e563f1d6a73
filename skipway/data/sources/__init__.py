"""Sources: resolve DATA (a name, folder, file or Hub address) and read what is there."""
