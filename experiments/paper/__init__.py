"""One command a table or figure of the paper."""
