"""Sources: documents from text, JSON lines, Parquet and folders."""
