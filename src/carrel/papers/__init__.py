"""Papers: what they are, where they are kept, how they come in and how they are found. No web, no torch."""
