"""Which block type each tensor gets, and turning plans into encoded rows."""
