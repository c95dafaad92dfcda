//! Enumerations whose numbers are part of a format: the number of each value is
//! written beside it, once, and never changes its meaning.

/// Declares such an enumeration with all its values and the way back from a number.
macro_rules! numbered {
    ($(#[$about:meta])* pub enum $name:ident { $($(#[$doc:meta])* $value:ident = $number:literal,)+ }) => {
        $(#[$about])*
        #[repr(u8)]
        pub enum $name {
            $($(#[$doc])* $value = $number,)+
        }

        impl $name {
            pub const ALL: [$name; [$($number),+].len()] = [$($name::$value),+];

            /// The one with this number.
            pub fn from_number(number: u8) -> Option<$name> {
                match number {
                    $($number => Some($name::$value),)+
                    _ => None,
                }
            }
        }
    };
}

pub(crate) use numbered;
