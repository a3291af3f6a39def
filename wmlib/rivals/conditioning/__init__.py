"""Other ways to give a network its context (Benjamin et al. 2025, section 3.1)."""
