"""A prior from demonstrations: reads them and fits a policy by maximum likelihood."""
