"""Quality and time on tasks of many kinds: half of them choose the rule, the other half look at it once."""
