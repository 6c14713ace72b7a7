"""The HTTP API: routes by noun, and what they share; a thin shim over Prefect and storage."""
