"""Pictures: ingest, storage, splits, codecs and stateless views."""
