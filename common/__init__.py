"""What two or more services share, and nothing else. Imports none of our other packages."""
