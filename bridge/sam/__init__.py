"""Segment Anything: loading it and prompting it, and the small one trained here (`mini`)."""
