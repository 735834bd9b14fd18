"""Functions: WebAssembly that runs inside the transactor's kernel, each call one transaction."""
