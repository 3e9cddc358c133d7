"""Routes, one file a noun. A route reads the request, asks the ledger, answers; it computes nothing of its own."""
