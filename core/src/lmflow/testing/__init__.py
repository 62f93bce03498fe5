"""What plugin authors test with: one class per slot to inherit, and small models made from code."""
