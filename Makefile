# Build, test and install sf-refresh. Each target says in its first line what it does.

PREFIX = /usr/local
DESTDIR =
CARGO = cargo
TARGET = x86_64-unknown-linux-musl
TARGETS = x86_64-unknown-linux-musl aarch64-unknown-linux-musl i686-unknown-linux-musl

# What the scripts of these targets are told.
export CARGO
# Where everything is built.
BUILD = $(or $(CARGO_TARGET_DIR),target)
BIN = $(DESTDIR)$(PREFIX)/bin
MAN = $(DESTDIR)$(PREFIX)/share/man/man1

.PHONY: all static dist vendor man demo test e2e torture bench ship check install uninstall clean

# The release binary for this machine: target/release/sf-refresh
all:
	$(CARGO) build --release --locked

# A static binary for any musl target: make static TARGET=aarch64-unknown-linux-musl
static:
	sh .packaging/build.sh static $(TARGET)

# target/dist: for each of TARGETS an archive with the static binary, and its SBOM; SHA256SUMS
dist:
	sh .packaging/build.sh dist $(TARGETS)

# An archive of the source and every crate, to build from without a network
vendor:
	sh .packaging/build.sh vendor

# The man page, target/sf-refresh.1, from --help; needs help2man
man: all
	sh .packaging/build.sh man $(BUILD)/release/sf-refresh

# Renew a sample token file against a stand-in endpoint, and show it before and after
demo:
	$(CARGO) build --quiet --locked --bins --examples
	sh tests/demo.sh

# The test suite
test:
	$(CARGO) test --locked

# The release builds before real servers, proxies and resolvers
e2e:
	sh tests/run.sh e2e/oidc-provider e2e/grants e2e/nginx e2e/proxies e2e/names e2e/addresses \
		e2e/salesforce e2e/libraries

# Kill it at each system call, fail each, run many at once; COUNT=200000 for so many mutations
torture:
	sh tests/torture/run.sh
	$(if $(COUNT),SF_REFRESH_MUTATIONS=$(COUNT) $(CARGO) test --locked --test cli mutations::)

# Speed and size, beside other programs for the same work
bench:
	sh tests/bench/run.sh

# Whether static, dist, vendor, man, install and the recipes do what the README says
ship:
	sh tests/run.sh ship/packages ship/offline recipes/run

# Formatting, and clippy and (if it is here) shellcheck with warnings as errors
check:
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	! command -v shellcheck >/dev/null || \
		shellcheck -x -P SCRIPTDIR -S warning .ci/run .packaging/*.sh tests/*.sh tests/*/*.sh

# Binary and man page, as they are built, into PREFIX; builds nothing
install:
	@test -x $(BUILD)/release/sf-refresh || { echo "nothing is built: run make first" >&2; exit 1; }
	install -d $(BIN)
	install -m 755 $(BUILD)/release/sf-refresh $(BIN)/sf-refresh
	if [ -f $(BUILD)/sf-refresh.1 ]; then \
		install -d $(MAN) && install -m 644 $(BUILD)/sf-refresh.1 $(MAN)/sf-refresh.1; \
	fi

uninstall:
	rm -f $(BIN)/sf-refresh $(MAN)/sf-refresh.1

clean:
	$(CARGO) clean
