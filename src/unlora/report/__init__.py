"""HTML reports: what a run achieved and what it cost, and several runs side by side. Importing this loads no torch."""
