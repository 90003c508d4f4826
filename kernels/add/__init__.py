"""y = a + b, all of one shape; y may be a or b. Its gradient is dy for both: there is no backward."""
