"""The page a devnet serves: its progress, and what a browser wallet needs to use the contract."""
