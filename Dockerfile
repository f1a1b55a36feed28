# syntax=docker/dockerfile:1
#
# docker build --build-arg REVISION="$(git rev-parse --short HEAD)" -t forebay .
# docker build --build-arg TRAINED=yes -t forebay .                       # costs a tenth less CPU, takes three times as long to build
# docker run --rm -p 8080:8080 -p 127.0.0.1:9090:9090 forebay            # shows itself with a slow demo upstream
# docker run --rm -p 8080:8080 forebay --upstream http://app:3000        # stands in front of an application

FROM rust:1.95-bookworm AS build
WORKDIR /build

# The dependencies form a layer of their own, which is built again only when a manifest changes. Sections that
# name files this layer does not have are left out of the manifest.
COPY Cargo.toml Cargo.lock ./
COPY .cargo .cargo
RUN cp Cargo.toml Cargo.toml.whole \
    && awk '/^\[/ { skip = /^\[\[(bench|test|example)\]\]/ } !skip' Cargo.toml.whole > Cargo.toml \
    && mkdir src \
    && echo '' > src/lib.rs \
    && echo 'fn main() {}' > src/main.rs \
    && cargo build --release --locked \
    && rm -r src Cargo.toml.whole

COPY . .
ARG REVISION=unknown
ENV FOREBAY_GIT_REVISION=${REVISION}
# yes: built by what the program was seen to do most, which takes two cores.
ARG TRAINED=no
# The release profile strips the binary. `touch` makes the sources newer than the empty ones of the layer above.
RUN touch src/lib.rs src/main.rs \
    && if [ "${TRAINED}" = yes ]; then \
         rustup component add llvm-tools && benches/train target/release/forebay; \
       else \
         cargo build --release --locked; \
       fi \
    && target/release/forebay --version

# Certificates, a C library and a user without rights; no shell.
FROM gcr.io/distroless/cc-debian12:nonroot
ARG REVISION=unknown
LABEL org.opencontainers.image.title="forebay" \
      org.opencontainers.image.description="An HTTP caching reverse proxy with request coalescing" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /build/target/release/forebay /usr/local/bin/forebay

# A container's loopback reaches nobody else, so both ports listen on every address. Whoever can reach the admin
# port can read metrics and health; changing requests (purges) are refused there until a token is configured:
# FOREBAY__ADMIN__TOKEN, or token_file in the configuration. Publish 9090 to the monitoring network only.
# Variables win over a file that is mounted: whoever wants other addresses sets these, or sets them empty (-e
# FOREBAY__SERVER__LISTEN=) to leave it to the file.
ENV FOREBAY__SERVER__LISTEN=0.0.0.0:8080 \
    FOREBAY__ADMIN__LISTEN=0.0.0.0:9090
EXPOSE 8080 9090
USER nonroot
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s --retries=3 CMD ["/usr/local/bin/forebay", "health"]
ENTRYPOINT ["/usr/local/bin/forebay"]
