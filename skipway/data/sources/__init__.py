"""Data sources: resolve DATA (a name, folder, file or Hub repository) and read its images or table."""
