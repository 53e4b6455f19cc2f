"""Growth of the set of experts while a model trains: detectors of drift, initialisers, acceptors, one controller."""
