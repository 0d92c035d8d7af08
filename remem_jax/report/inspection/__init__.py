"""The page and the text about images before a run; see `remem data`."""
