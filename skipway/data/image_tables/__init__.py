"""Tables of images: tables of which a column names image files."""
