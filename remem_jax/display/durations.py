"""Durations as text."""


def duration(seconds: float) -> str:
    """Returns a duration for users, such as 45 s, 12 min or 1 h 5 min."""
    if round(seconds) < 100:
        return f"{round(seconds)} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"
