"""The front door: ledger, engine, API, pages and command line."""
