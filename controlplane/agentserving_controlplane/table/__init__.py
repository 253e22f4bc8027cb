"""The process table: rows, indexes, admissions, reports, endings. Pure."""
