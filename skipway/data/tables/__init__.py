"""Tables: columns, encoders, rows in batches."""
