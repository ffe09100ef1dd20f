"""Training of the editors that learn before they edit (MEND, SERAC): examples, one loop, and the artefact they leave."""
