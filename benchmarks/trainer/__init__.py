"""The trainer beside torchtext and fastText, and at the size of the Yelp polarity data."""
