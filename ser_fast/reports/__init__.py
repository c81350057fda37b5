"""Results to text and pictures: whole runs as the command line starts them, tables, figures and HTML reports."""
