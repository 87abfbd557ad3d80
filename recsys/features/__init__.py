"""Item columns turned into tower inputs, with vocabularies that are fitted once and saved."""
