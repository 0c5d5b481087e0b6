"""An analysis on the terminal: its networks, its parts with a progress bar, its files, a short table."""
