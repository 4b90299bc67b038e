"""Networks: links, addresses, published ports, names."""
