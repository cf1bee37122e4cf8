"""Where things are kept: files, the authority's directory, the SQL ledger, an agent's SVIDs."""
