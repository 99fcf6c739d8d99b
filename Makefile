# Build, test and install sf-refresh. Each target says in its first line what it does.

PREFIX = /usr/local
DESTDIR =
CARGO = cargo

.PHONY: all demo test check install uninstall clean

# The release binary for this machine: target/release/sf-refresh
all:
	$(CARGO) build --release --locked

# Renew a sample token file against a stand-in endpoint, and show it before and after
demo:
	$(CARGO) build --quiet --locked --bins --examples
	sh tests/demo.sh

# The test suite
test:
	$(CARGO) test --locked

# Formatting, and clippy with warnings as errors
check:
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings

install: all
	install -d $(DESTDIR)$(PREFIX)/bin
	install -m 755 target/release/sf-refresh $(DESTDIR)$(PREFIX)/bin/sf-refresh
	if [ -f target/sf-refresh.1 ]; then \
		install -d $(DESTDIR)$(PREFIX)/share/man/man1 && \
		install -m 644 target/sf-refresh.1 $(DESTDIR)$(PREFIX)/share/man/man1/sf-refresh.1; \
	fi

uninstall:
	rm -f $(DESTDIR)$(PREFIX)/bin/sf-refresh $(DESTDIR)$(PREFIX)/share/man/man1/sf-refresh.1

clean:
	$(CARGO) clean
