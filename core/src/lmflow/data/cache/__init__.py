"""What is kept on disk of records and tokens."""
