"""Pages for people: what a run achieved and what it cost, and several runs side by side. Loads no torch."""
