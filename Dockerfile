# The image of Sheepdog: all programs of one version, and what the CSI driver calls to make and mount file systems.
#
#     docker build --tag localhost/sheepdog:0.1.0 .
#
# `dog` in it is also the plugin of kubectl (docs/reference/kubectl.md); on the machine of whoever uses it:
#
#     docker run --rm --entrypoint cat localhost/sheepdog:0.1.0 /usr/bin/dog > kubectl-sheepdog && sudo install kubectl-sheepdog /usr/local/bin/
#
# The tests make the same image without Docker, from the programs that were built on the machine (docs/testing.md).

FROM rust:1.95-bookworm AS build
# Builds for several platforms at the same time must not write over each other's programs.
ARG TARGETPLATFORM
WORKDIR /source
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,id=target-$TARGETPLATFORM,target=/target \
    CARGO_TARGET_DIR=/target cargo build --release --locked --workspace --bins --exclude sheep-e2e \
        --exclude sheep-sim \
    && mkdir /programs \
    && for program in sheep dog sheep-csi sheep-device sheep-operator; do \
        strip --strip-debug -o "/programs/$program" "/target/release/$program" || exit 1; done

FROM debian:bookworm-slim
# The tests read the list of packages from this line.
ARG PACKAGES="ca-certificates e2fsprogs mount util-linux xfsprogs"
RUN apt-get update && apt-get install --yes --no-install-recommends $PACKAGES && rm -rf /var/lib/apt/lists/*
COPY --from=build /programs/ /usr/bin/
ENTRYPOINT ["/usr/bin/sheep"]
