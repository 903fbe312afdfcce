"""What the commands do, one package for each: it reads, works, and writes results that a person can open."""
