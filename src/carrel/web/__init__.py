"""The site: server pages over a `Desk`. It loads no torch; experiments run in a process of their own."""
