"""The steps that bring the ledger's database from one schema to the next."""
