"""Files: read, checked and written. Each format is a package; they do not know each other."""
