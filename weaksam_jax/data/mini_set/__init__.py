"""The embedded mini set: painted scenes of seven classes, written as a VOCdevkit."""
