# Image of one Citrate node: the same set-up as on a machine, then `citrate`.
FROM debian:12-slim
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates gcc libgmp-dev libc6-dev make nodejs npm \
      python3 python3-dev python3-venv \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /citrate
COPY pyproject.toml constraints.txt package.json package-lock.json Makefile README.md ./
COPY tools tools
COPY contracts contracts
COPY citrate_node citrate_node
RUN make setup
ENV PATH=/citrate/.venv/bin:$PATH
CMD ["citrate", "--help"]
