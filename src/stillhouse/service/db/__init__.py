"""The ledger's adapters: SQL (SQLite, PostgreSQL) and memory, with the tables and their migrations."""
