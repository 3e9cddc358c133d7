"""The planner: decides what to try next. Pure Python and Optuna; imports no sibling package."""
