"""What people look at: each view takes a table and knows nothing of the road that made it."""
