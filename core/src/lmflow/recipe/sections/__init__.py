"""The sections of a recipe that hold options and no component."""
