"""Time as users have it: measured side by side, and foretold from timed nodes."""
