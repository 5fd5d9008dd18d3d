"""The mathematics of flow: path, schedule, solvers, and combinators over velocities. Knows no network."""
