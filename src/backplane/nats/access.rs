//! How the adapter proves its identity to a server, and which certificates it uses. All of it is
//! secret, or the path of a secret.

use std::path::PathBuf;

use async_nats::ConnectOptions;

use super::super::{Answer, BackplaneError};

#[derive(Clone, Default)]
pub(super) struct Access {
    identity: Identity,
    /// The file with the certificates of the authorities that the adapter trusts, in place of those
    /// of the system.
    roots: Option<PathBuf>,
    /// The files with the certificate of the adapter and its private key.
    certificate: Option<(PathBuf, PathBuf)>,
    /// The first tokens of the subjects on which the adapter receives answers.
    inbox_prefix: Option<String>,
}

#[derive(Clone, Default)]
pub(super) enum Identity {
    #[default]
    Anonymous,
    /// A user name with a password, or a token without a password.
    User(String, Option<String>),
    /// A credentials file. The adapter reads the file for each connection, so that a renewed file
    /// takes effect without a restart.
    File(PathBuf),
    /// The seed of an NKey.
    NKey(String),
}

impl Access {
    pub(super) fn set_identity(&mut self, identity: Identity) {
        self.identity = identity;
    }

    #[cfg(test)]
    pub(super) fn identity(&self) -> &Identity {
        &self.identity
    }

    pub(super) fn set_roots(&mut self, file: PathBuf) {
        self.roots = Some(file);
    }

    pub(super) fn set_certificate(&mut self, certificate: PathBuf, key: PathBuf) {
        self.certificate = Some((certificate, key));
    }

    /// Sets the prefix of inboxes. Returns an error if the text is not the beginning of a subject.
    pub(super) fn set_inbox_prefix(&mut self, prefix: &str) -> Answer<()> {
        let is_token = |token: &str| {
            !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'*' | b'>'))
        };
        if !prefix.split('.').all(is_token) {
            return Err(BackplaneError::rejected("the inbox prefix is not the beginning of a subject"));
        }
        self.inbox_prefix = Some(prefix.to_owned());
        Ok(())
    }

    /// Adds everything to the options of a connection.
    pub(super) async fn apply(&self, mut options: ConnectOptions) -> Answer<ConnectOptions> {
        options = match &self.identity {
            Identity::Anonymous => options,
            Identity::User(user, Some(password)) => options.user_and_password(user.clone(), password.clone()),
            Identity::User(token, None) => options.token(token.clone()),
            Identity::NKey(seed) => options.nkey(seed.clone()),
            Identity::File(path) => {
                let text = tokio::fs::read_to_string(path).await;
                let text = text.map_err(|error| {
                    BackplaneError::rejected(format!("the credentials file cannot be read: {error}"))
                })?;
                // The error of the client is not included, because it might quote the file.
                options.credentials(&text).map_err(|_| {
                    BackplaneError::rejected("the credentials file does not contain a user JWT and an NKey seed")
                })?
            }
        };
        if let Some(prefix) = &self.inbox_prefix {
            options = options.custom_inbox_prefix(prefix);
        }
        if let Some(roots) = &self.roots {
            options = options.add_root_certificates(roots.clone());
        }
        if let Some((certificate, key)) = &self.certificate {
            options = options.add_client_certificate(certificate.clone(), key.clone());
        }
        Ok(options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inbox_prefix_is_the_beginning_of_a_subject() {
        for prefix in ["_INBOX_shop", "_INBOX.shop", "a.b-c"] {
            assert!(Access::default().set_inbox_prefix(prefix).is_ok(), "{prefix}");
        }
        for prefix in ["", ".", "a.", ".a", "a b", "a.*", "a.>", "a\r\nSUB x 1", "ä"] {
            assert!(Access::default().set_inbox_prefix(prefix).unwrap_err().is_rejected(), "{prefix}");
        }
    }
}
