use std::error::Error;

/// Bounds how often one kind of message is logged: what causes it may be in
/// the hands of the guest.
#[derive(Debug)]
pub(crate) struct LogLimit {
    left: u32,
}

impl LogLimit {
    /// Lets `messages` through and no more.
    pub(crate) const fn new(messages: u32) -> Self {
        Self { left: messages }
    }

    /// Asks to log a message. The answer, if it may be logged, is what to put
    /// at its end: the last one says that it is the last.
    pub(crate) fn admit(&mut self) -> Option<&'static str> {
        self.left = self.left.checked_sub(1)?;
        Some(match self.left {
            0 => " (no more messages of this kind follow)",
            _ => "",
        })
    }

    /// Asks to log an error. The answer, if it may be logged, is its text with
    /// its cause; it ends the message.
    pub(crate) fn error(&mut self, error: &dyn Error) -> Option<String> {
        let end = self.admit()?;
        let cause = error.source().map(|cause| format!(": {cause}"));
        let cause = cause.unwrap_or_default();
        Some(format!("{error}{cause}{end}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_message_says_so() {
        let mut limit = LogLimit::new(2);
        assert_eq!(limit.admit(), Some(""));
        assert!(limit.admit().unwrap().contains("no more"));
        assert_eq!(limit.admit(), None);
        assert_eq!(limit.admit(), None);
    }
}
